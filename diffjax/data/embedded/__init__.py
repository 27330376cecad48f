"""The small data set inside the package: 622 emoji of 8 kinds, and the script that builds it."""
