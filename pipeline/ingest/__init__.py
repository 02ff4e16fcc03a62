"""Reading of a log: units, parts, deal, cursor, data source, plan of a stream, its receiving end, batcher."""
