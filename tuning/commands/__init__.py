"""The commands of `captune`, a file per purpose; `tuning.cli` puts them together."""
