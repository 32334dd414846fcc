"""The command line of virchow_st: thin click commands over the package."""
