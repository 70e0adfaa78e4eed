"""Reports on files of sales: a pipeline of steps, from the upload to a chart and a summary."""
