"""The checks of the data gate, a module a kind of fault; each adds findings and changes nothing."""
