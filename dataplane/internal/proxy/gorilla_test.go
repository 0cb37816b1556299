package proxy_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// A WebSocket of a library's client to the library's server, through an edge: messages of each size both ways, in fragments and
// with compression offered, pings, a subprotocol, the code of closing; and units of messages and of bytes.
func TestSocket_TheirClientAndServer(t *testing.T) {
	upgrader := websocket.Upgrader{Subprotocols: []string{"chat.v2"}, EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true }}
	for name, units := range map[string]*table.Units{"messages": {PerMessages: 2, Most: 100}, "bytes": {PerBytes: 1000, Most: 1000}} {
		t.Run(name, func(t *testing.T) {
			w := newLive(t, patient, func(r *table.Route) { r.Units = units })
			closed := make(chan error, 1)
			w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
				c, err := upgrader.Upgrade(rw, r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for {
					kind, data, err := c.ReadMessage()
					if err != nil {
						closed <- err
						return
					}
					if err := c.WriteMessage(kind, data); err != nil {
						closed <- err
						return
					}
				}
			})
			d := websocket.Dialer{Subprotocols: []string{"chat.v1", "chat.v2"}, EnableCompression: true, WriteBufferSize: 512} // which makes fragments
			c, resp, err := d.Dial("ws"+strings.TrimPrefix(w.west.server.URL, "http")+"/live/x", http.Header{"Host": {"orders.test"}, "X-Api-Key": {w.key}})
			if err != nil {
				t.Fatalf("%v: %v", err, resp)
			}
			defer c.Close()
			if c.Subprotocol() != "chat.v2" {
				t.Errorf("they speak %q", c.Subprotocol())
			}
			pong := make(chan string, 1)
			c.SetPongHandler(func(s string) error { pong <- s; return nil })
			c.WriteControl(websocket.PingMessage, []byte("there?"), time.Now().Add(time.Minute))
			bytesOf := 0
			sizes := []int{0, 1, 125, 126, 500, 65_535, 65_536, 200_000}
			for i, n := range sizes {
				kind := websocket.BinaryMessage
				data := bytes.Repeat([]byte{byte(i)}, n)
				if i%2 == 0 {
					kind, data = websocket.TextMessage, []byte(strings.Repeat("ä", n/2))
				}
				bytesOf += 2 * len(data)
				w, err := c.NextWriter(kind)
				if err != nil {
					t.Fatal(err)
				}
				w.Write(data)
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if k, got, err := c.ReadMessage(); err != nil || k != kind || !bytes.Equal(got, data) {
					t.Fatalf("of %d bytes %d came back, %v", n, len(got), err)
				}
			}
			if got := <-pong; got != "there?" {
				t.Errorf("the pong says %q", got)
			}
			c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "enough"))
			if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 4001) {
				t.Errorf("it ended with %v, want 4001", err)
			}
			if err := <-closed; !websocket.IsCloseError(err, 4001) || !strings.Contains(err.Error(), "enough") {
				t.Errorf("the upstream heard %v, want 4001", err)
			}
			row := w.final()
			want := int64(len(sizes)) // there and back, two a unit
			if name == "bytes" {
				want = int64(bytesOf+999) / 1000
			}
			if got := w.west.meter.paid(); got != want || row.Outcome != usage.OutcomeSuccess {
				t.Errorf("%d units, want %d; row %+v", got, want, row)
			}
		})
	}
}
