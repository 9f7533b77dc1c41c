"""From a person's files to checked shards: readers, packing, inspection, guards."""
