"""The sections of a report, one file each: a function from measurements to a `Section`."""
