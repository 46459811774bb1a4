"""From a YAML file to checked, frozen steps, or to every mistake with its place. Its door is `load`."""
