import logging

logging.root.addHandler(logging.NullHandler())  # Beam warns, where it is imported, about parts that are not installed
