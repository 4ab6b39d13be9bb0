"""A run: built, trained, evaluated, recorded, plotted."""
