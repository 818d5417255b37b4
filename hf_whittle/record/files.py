"""Names of files in a student's folder."""

RECIPE_FILE = "recipe.yaml"
