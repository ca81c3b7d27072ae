"""Images that do not come by HTTP: from a watched folder or a camera, over the same queue and report."""
