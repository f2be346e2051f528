"""What measures this project itself, for its README: rivals, planted problems, tables. Not part of the package."""
