"""Small public data sets as NumPy arrays: `digits` is part of the package, the others are downloaded once.

The files of a data set are read from the first of these folders that applies:

* `$XPNET_DATA/<name>`, if it exists. Nothing is downloaded, and the files need not be the originals;
* `$XPNET_CACHE`, or the user's cache folder. The original files are downloaded there over HTTPS, and their
  SHA-256 is checked at every use. This needs `pip install 'xpnet[datasets]'`; `XPNET_OFFLINE=1` forbids
  downloads.
"""

from .sets import admissions, cifar10, cifar100, digits, fashion_mnist, mnist

__all__ = ["admissions", "cifar10", "cifar100", "digits", "fashion_mnist", "mnist"]
