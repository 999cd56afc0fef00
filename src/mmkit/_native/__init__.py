"""The extension modules: thin layers over the C core. Use what `mmkit` exports instead."""
