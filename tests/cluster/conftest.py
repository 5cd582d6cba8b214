"""What tests with real processes share."""

import uvloop

# The first loop makes a pipe for signals that libuv keeps for as long as the process lives.
uvloop.new_event_loop().close()
