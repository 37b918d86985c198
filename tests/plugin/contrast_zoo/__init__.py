"""What a group adds to epizoo, installed beside it: nothing in epizoo names it."""
