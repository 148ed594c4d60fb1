"""The last module that the fork server of local workers imports: it ends garbage collection there.

What is imported by then is no garbage. Workers would look through it again and again, and a look
copies the memory pages that they share.
"""

import gc

gc.collect()
gc.freeze()
