"""The endpoints, one module for each kind of thing: jobs, results, the catalogue, the service, the page."""
