"""What everything above is made of: settings, operations, parameters, random numbers, conversion of arrays."""
