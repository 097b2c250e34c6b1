"""What an epoch is: the number of a cluster's recovery from a lost majority, and a mark that tells two recoveries apart.

Two people may recover two halves of one cluster, neither knowing of the other; both are the cluster's first recovery. So the
number alone names nothing. The mark is drawn at random, and both are one integer whose order is that of the numbers first.
Pure: who draws the mark is `clusterfs.recovering`.
"""

_MARK_BITS = 32
_MARK_MASK = (1 << _MARK_BITS) - 1


def following(epoch: int, mark: int) -> int:
    """The epoch of the next recovery; a mark of 0 says that it is not drawn yet."""
    return (number(epoch) + 1) << _MARK_BITS | mark & _MARK_MASK


def number(epoch: int) -> int:
    """How often the cluster has been recovered."""
    return epoch >> _MARK_BITS


def are_rivals(one: int, other: int) -> bool:
    """Two halves of one cluster, each recovered without the other."""
    return one != other and number(one) == number(other)


def text(epoch: int) -> str:
    """`1-4f2a91c3`; the number alone while there is no mark."""
    mark = epoch & _MARK_MASK
    return f"{number(epoch)}-{mark:08x}" if mark else str(number(epoch))
