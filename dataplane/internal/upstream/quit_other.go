//go:build !linux

package upstream

import (
	"net"
	"time"
)

func quit(net.Conn, time.Duration) {}
