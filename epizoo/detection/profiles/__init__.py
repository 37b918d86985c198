"""Profiles: what each kind of change does to the maps, one file each, and the detector that reads them."""
