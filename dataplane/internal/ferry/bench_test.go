package ferry_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/ferry"
)

// busy is the processor time that this process has used: what a machine shared with others does not change much.
func busy() time.Duration {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkEcho is 256 bytes there and back over streams of one connection, with quic-go on the socket itself, on a Conn, and on
// one that looks for another process's packets.
func BenchmarkEcho(b *testing.B) {
	for _, way := range []string{"socket", "ferry", "ferry-diverting"} {
		b.Run(way, func(b *testing.B) {
			u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer u.Close()
			tr := &quic.Transport{Conn: u, ConnectionIDLength: ferry.IDLen}
			if way != "socket" {
				c, err := ferry.New(u)
				if err != nil {
					b.Fatal(err)
				}
				tr.Conn, tr.ConnectionIDGenerator = c, ids{c}
				if way == "ferry-diverting" {
					c.Divert(c.Mark()+1, func([]byte) {})
				}
			}
			l, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"x"}}, &quic.Config{MaxIncomingStreams: 1000})
			if err != nil {
				b.Fatal(err)
			}
			defer tr.Close()
			defer l.Close()
			go func() {
				for {
					q, err := l.Accept(context.Background())
					if err != nil {
						return
					}
					go func() {
						for {
							st, err := q.AcceptStream(context.Background())
							if err != nil {
								return
							}
							go func() { io.Copy(st, st); st.Close() }()
						}
					}()
				}
			}()
			q, _ := dial(b, u.LocalAddr())
			defer q.CloseWithError(0, "")
			b.SetParallelism(32)
			b.ReportAllocs()
			b.ResetTimer()
			began := busy()
			defer func() { b.ReportMetric(float64(busy()-began)/float64(b.N), "cpu-ns/op") }()
			b.RunParallel(func(p *testing.PB) {
				sent, got := bytes.Repeat([]byte("x"), 256), make([]byte, 257)
				for p.Next() {
					st, err := q.OpenStreamSync(b.Context())
					if err != nil {
						b.Error(err)
						return
					}
					st.SetDeadline(time.Now().Add(time.Minute))
					st.Write(sent)
					st.Close()
					if n, err := io.ReadFull(st, got); n != 256 || err != io.ErrUnexpectedEOF {
						b.Errorf("%d bytes came back, %v", n, err)
						return
					}
				}
			})
		})
	}
}
