"""The commands, a module each; `ptkit.cli` imports one when it is called."""
