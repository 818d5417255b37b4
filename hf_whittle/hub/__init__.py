"""What a student is published with: its model card and pictures."""
