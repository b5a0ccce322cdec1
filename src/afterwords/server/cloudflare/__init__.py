"""The way from the hosted service on Cloudflare to a server of this package: `export` reads, `importer` writes."""
