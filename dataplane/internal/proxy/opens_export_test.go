package proxy

import (
	"context"
	"net"
)

// Opens is opens for tests.
type Opens struct{ o opens }

const OpenMost, OpenShare, OpenWait = openMost, openShare, openWait

var ErrOpens = errOpens

func (o *Opens) Open(ctx context.Context, whose string, dial func(context.Context) (net.Conn, error)) error {
	_, err := o.o.open(opening(ctx, whose), dial)
	return err
}

// Left is what is kept of those who had a turn or waited.
func (o *Opens) Left() int { return len(o.o.of) + len(o.o.line) + o.o.taken }
