"""Keys and values of documents that were read, kept on the disk and, where machines share them, in a bucket."""
