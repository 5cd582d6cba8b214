"""What owners say to the workers they lease, and what owners and borrowers say to each other."""

from types import NoneType

from raylite._kernel.interface import Interface, batch, call, post
from raylite._wire import hot


class Execute(Interface):
    """An owner to a worker that it leases. Those in bulk are one lane: order is the link's."""

    define: batch[hot.Definition] = batch(hot.Definition)
    hold: batch[hot.Holding] = batch(
        hot.Holding
    )  # before the first task of a lease, if it is not what was told last
    run: batch[hot.Task] = batch(hot.Task)
    cancel: batch[hot.Cancel] = batch(hot.Cancel)  # never before the `run` of what it cancels
    give_back: post[bytes] = post(
        bytes
    )  # return what was not started: there are idle hands elsewhere
    allow: batch[hot.StreamTerms] = batch(
        hot.StreamTerms
    )  # in the lane of `run`, so that it never comes before its task


class Submit(Interface):
    """A worker to the owner of the tasks it runs."""

    results = batch(hot.Result, bulk=False)
    items = batch(hot.StreamItems, bulk=False)  # in the lane of `results`: they come before it
    given_back = batch(hot.GivenBack, bulk=False)
    leaving = post(bytes)  # this worker runs nothing more: its lease is of no use


class Owner(Interface):
    """Borrowers to an object's owner."""

    fetch = call(hot.Fetch, hot.Value)  # replies when the object is ready
    borrow = call(hot.Borrow, NoneType)  # acknowledged before the lender lets go
    cancel = call(hot.CancelTask, hot.Cancelled)  # replies when the task has ended
    give_up = batch(hot.Borrow, bulk=False)  # the borrower holds these no more
    received = batch(bytes, bulk=False)  # a value's references have found their new holder
    review = post(str)  # from a borrower whose session has ended, its address: what is lent to it?
    unheld = post(hot.Unheld)  # its answer to `Borrower.lent`, in the lane of `give_up`


class Borrower(Interface):
    """An object's owner to a borrower."""

    lent: post[hot.Lent] = post(hot.Lent)  # the answer to `review`


class Explain(Interface):
    """Anybody to an object's owner."""

    explain = call(hot.Fetch, hot.Explanation)  # why it is not there yet; never waits for it


class Output(Interface):
    """Raylets to a driver."""

    show = call(
        hot.Output, hot.Shown, bulk=True
    )  # replies when it is on the terminal: one at a time


class Locations(Interface):
    """Raylets to an object's owner."""

    locate = batch(hot.Locate, bulk=False)  # answered with `Transfers.located`, now and on changes
    forget = batch(hot.Locate, bulk=False)
    news = batch(hot.CopyNews, bulk=False)
