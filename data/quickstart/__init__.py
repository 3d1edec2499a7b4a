"""The quickstart data: real handwritten digits, synthesised speech and the import graph of the standard library."""
