"""The common basis: settings, operations, parameters, random numbers, conversion of arrays."""
