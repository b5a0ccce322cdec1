"""The audio bytes: a folder or an S3 bucket, through obstore."""
