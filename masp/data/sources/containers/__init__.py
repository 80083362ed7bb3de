"""How are images listed that are inside larger files: parquet and arrow files, tars?"""
