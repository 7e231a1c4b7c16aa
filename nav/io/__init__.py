"""Files of the field: the only place where LPS becomes RAS."""
