"""What people look at in a browser: pages made here, readable without JavaScript."""
