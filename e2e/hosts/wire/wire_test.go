package wire_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"bailiwick/e2e/hosts/wire"
)

var a, b = netip.MustParseAddrPort("10.1.8.2:40000"), netip.MustParseAddrPort("10.2.8.2:443")

// tcp is one frame.
func tcp(from, to netip.AddrPort, sequence uint32, syn bool, data string) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = binary.BigEndian.AppendUint32(segment, sequence)
	segment = append(segment, 0, 0, 0, 0, 5<<4, 0x10, 0, 0, 0, 0, 0, 0)
	if syn {
		segment[13] |= 2
	}
	segment = append(segment, data...)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(segment)))
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	frame := append(make([]byte, 12), 8, 0)
	return append(append(frame, ip...), segment...)
}

func capture(t *testing.T, frames ...[]byte) string {
	t.Helper()
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, make([]byte, 16)...)
	file = binary.LittleEndian.AppendUint32(file, 1)
	for _, f := range frames {
		file = append(file, make([]byte, 8)...)
		file = binary.LittleEndian.AppendUint32(file, uint32(len(f)))
		file = binary.LittleEndian.AppendUint32(file, uint32(len(f)))
		file = append(file, f...)
	}
	path := filepath.Join(t.TempDir(), "pcap")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Segments are put in order, what came twice counts once, a gap is told, and ports that are used again are another
// connection. A sequence number that wraps is no gap.
func TestRead_PutsSegmentsTogether(t *testing.T) {
	first := uint32(0xfffffffc)
	streams, err := wire.Read(capture(t,
		tcp(a, b, first, true, ""), tcp(b, a, 99, true, ""),
		tcp(a, b, first+1+6, false, "wor"), tcp(a, b, first+1, false, "hello "), tcp(a, b, first+1+3, false, "lo wor"), tcp(a, b, first+10, false, "ld"),
		tcp(b, a, 100, false, "be"), tcp(b, a, 105, false, "hind"),
		tcp(a, b, 7000, true, ""), tcp(a, b, 7001, false, "again"),
		append(make([]byte, 12), 8, 6, 1, 2, 3)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	lost := 0
	for _, s := range streams {
		if s.Protocol == 6 {
			got = append(got, string(s.Data))
			lost += s.Lost
		}
	}
	if strings.Join(got, "|") != "hello world|behind|again" || lost != 1 || len(streams) != 4 {
		t.Errorf("got %q with %d gaps in %d streams, want hello world, behind, again; one gap; 4 streams", got, lost, len(streams))
	}
	whole := capture(t, tcp(a, b, 1, true, "all of it"))
	if err := os.Truncate(whole, 60); err != nil {
		t.Fatal(err)
	}
	if _, err := wire.Read(whole); err == nil {
		t.Error("a frame without its end: read, want an error")
	}
}

// tap records one direction.
type tap struct {
	net.Conn
	mu   *sync.Mutex
	sent *bytes.Buffer
}

func (c tap) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.sent.Write(p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// What crypto/tls says over a connection is read back from its bytes, HTTP/2 headers and split bodies included; with
// other secrets, or none, it stays shut.
func TestKeys_OpenWhatTLSHides(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"x.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var said, heard bytes.Buffer
	secrets, err := os.Create(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(tap{far, &mu, &heard}, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2"}, KeyLogWriter: secrets})
	long := strings.Repeat("0123456789", 5000) // more than a frame
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		if err := server.Handshake(); err != nil {
			return
		}
		new(http2.Server).ServeConn(server, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("X-Answer", "Answer-In-A-Header")
			io.WriteString(w, "answer "+long)
		})})
	}()
	client := tls.Client(tap{near, &mu, &said}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	conn, err := new(http2.Transport).NewClientConn(client)
	if err != nil {
		t.Fatal(err)
	}
	request, _ := http.NewRequest(http.MethodPost, "https://x.test/path", strings.NewReader("question "+long))
	request.Header.Set("X-Note", "Note-In-A-Header")
	response, err := conn.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	client.Close()
	near.Close()
	<-done

	mu.Lock()
	defer mu.Unlock()
	from, to := wire.Stream{From: a, To: b, Data: said.Bytes()}, wire.Stream{From: b, To: a, Data: heard.Bytes()}
	keys := wire.Keys{}
	if _, _, err := keys.Open(from, to); !errors.Is(err, wire.ErrNoSecret) {
		t.Errorf("without secrets: %v, want %v", err, wire.ErrNoSecret)
	}
	if err := keys.ReadKeys(secrets.Name()); err != nil {
		t.Fatal(err)
	}
	x, y, err := keys.Open(from, to)
	if err != nil {
		t.Fatal(err)
	}
	for who, c := range map[string]struct {
		plain wire.Plain
		want  []string
	}{
		"the client": {x, []string{"x-note: Note-In-A-Header", "question " + long}},
		"the server": {y, []string{"x-answer: Answer-In-A-Header", "answer " + long}},
	} {
		pieces := bytes.Join(wire.HTTP2(c.plain.Data), nil)
		for _, want := range c.want {
			if !bytes.Contains(pieces, []byte(want)) {
				t.Errorf("%s: %.40q is not in the %d bytes that were opened", who, want, len(pieces))
			}
		}
	}
	if _, _, err := keys.Open(wire.Stream{Data: []byte("GET / HTTP/1.1")}, to); !errors.Is(err, wire.ErrNoTLS) {
		t.Errorf("no TLS: %v, want %v", err, wire.ErrNoTLS)
	}
	if !bytes.Contains(y.Messages, der) || bytes.Contains(y.Data, der) {
		t.Error("the server's certificate is not among the handshake's messages, or among its data")
	}
	for random := range keys {
		for label := range keys[random] {
			keys[random][label] = make([]byte, 32)
		}
	}
	if x, _, err := keys.Open(from, to); err == nil || len(x.Data) > 0 {
		t.Errorf("with other secrets: %d bytes, %v; want none and an error", len(x.Data), err)
	}
}
