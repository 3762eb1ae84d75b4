"""What every room needs: errors, array types, files written whole, units. It knows no models."""
