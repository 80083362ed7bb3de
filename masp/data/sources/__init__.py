"""How is a dataset laid out on the disk: directories, index files, tables, parquet and arrow files, tars?"""
