"""What a run shows, as files for papers and for other programs: tables, figures and a paragraph about its methods."""
