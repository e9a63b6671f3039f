"""An attribution as stored bytes, and its views: JSON, tables, HTML, Inseq's own file."""
