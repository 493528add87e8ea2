"""What can be wrong in a layer, one file for each part: `alternatives` of a suspect, by `RANK`."""
