"""Building blocks shared by the algorithms: layers, and the chunked head with its losses."""
