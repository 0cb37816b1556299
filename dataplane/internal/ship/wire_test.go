package ship_test

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage/usagetest"
)

// wire counts what passes a UDP socket. The addresses of IP and UDP are not in it: 28 bytes a datagram.
type wire struct {
	net.PacketConn
	in, out, datagrams atomic.Int64
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := w.PacketConn.ReadFrom(b)
	w.in.Add(int64(n))
	w.datagrams.Add(1)
	return n, from, err
}

func (w *wire) WriteTo(b []byte, to net.Addr) (int, error) {
	w.out.Add(int64(len(b)))
	return w.PacketConn.WriteTo(b, to)
}

// BenchmarkWire sends real traffic at its real pace over a real QUIC connection
// on loopback and prints bytes a request: everything that leaves the edge, with
// hashes, frames, TLS, QUIC's headers and acknowledgements, but not the
// handshake and the search for the path's MTU. ledger is measured without detail, detail is the rest. WIRE_SECONDS
// says how long; 0: 12.
func BenchmarkWire(b *testing.B) {
	seconds, _ := strconv.Atoi(os.Getenv("WIRE_SECONDS"))
	if seconds == 0 {
		seconds = 12
	}
	for _, rate := range []int{1000, 3000} {
		b.Run(strconv.Itoa(rate)+"rps", func(b *testing.B) {
			for b.Loop() {
				alone, back, packets, n := wireBytes(b, rate, seconds, false)
				both, backBoth, packetsBoth, m := wireBytes(b, rate, seconds, true)
				perLedger, perBoth := float64(alone)/float64(n), float64(both)/float64(m)
				b.ReportMetric(perLedger, "ledgerB/request")
				b.ReportMetric(perBoth-perLedger, "detailB/request")
				b.ReportMetric(28*float64(packets)/float64(n), "ledger-IPv4+UDP-B/request")
				b.ReportMetric(28*(float64(packetsBoth)/float64(m)-float64(packets)/float64(n)), "detail-IPv4+UDP-B/request")
				b.ReportMetric(float64(back)/float64(n), "ledger-answers-B/request")
				b.ReportMetric(float64(backBoth)/float64(m)-float64(back)/float64(n), "detail-answers-B/request")
			}
		})
	}
}

func wireBytes(b *testing.B, rate, seconds int, withDetail bool) (in, out, datagrams int64, rows int) {
	p, led := newPKI(b), newLedger()
	n := newNode(b, p, led, false, true)
	n.store = newStore()
	udp, err := net.ListenPacket("udp", n.addr)
	if err != nil {
		b.Fatal(err)
	}
	w := &wire{PacketConn: udp}
	n.serveQUICOn(b, w)
	var d *detail.Spool
	cfg := spool.Config{Dir: b.TempDir(), Edge: edge}
	if withDetail {
		d = openDetail(b)
		cfg.Detail = d
	}
	s, err := spool.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	f := startConfig(b, p, ship.Config{Spool: s, Detail: d, Addrs: func() []string { return []string{n.addr} }}) // all defaults
	eventually(b, "a session", func() bool { return f.ship.Stats().Sessions == 1 })
	time.Sleep(3 * time.Second) // the path's MTU is looked for once a connection, with packets of 1.4 kB
	in0, out0, datagrams0 := w.in.Load(), w.out.Load(), w.datagrams.Load()
	began := time.Now()
	traffic := usagetest.NewTraffic(1, began, float64(rate))
	for rows < rate*seconds {
		r := traffic.Next()
		if ahead := time.Until(time.UnixMilli(r.EndUnixMS)); ahead > 5*time.Millisecond {
			time.Sleep(ahead)
		}
		if err := s.Append(&r); err != nil {
			b.Fatal(err)
		}
		rows++
	}
	eventually(b, "all rows in the ledger", func() bool {
		total := int64(0)
		led.set(func() {
			for _, c := range led.customer {
				total += c
			}
		})
		return total == int64(rows) && (d == nil || d.Stats().Pieces == 0)
	})
	in, out, datagrams = w.in.Load()-in0, w.out.Load()-out0, w.datagrams.Load()-datagrams0
	f.stop()
	cancel()
	if err := <-ran; err != nil {
		b.Error(err)
	}
	s.Close()
	return in, out, datagrams, rows
}
