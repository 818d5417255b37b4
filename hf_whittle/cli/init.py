"""tmp"""
HELP="x"
EXAMPLE="x"
def add_arguments(parser): pass
def main(options): pass
