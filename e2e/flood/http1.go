package flood

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	askers = 32  // connections that ask as fast as they are answered
	idlers = 500 // that do nothing, or little
)

var overHTTP1 = []Flood{
	{Name: "HTTP/1.1: requests with keys that nobody has", Workers: askers, Answer: "401", do: asks(func(e *Edge, _ int64) string {
		return "GET /v1/x HTTP/1.1\r\nHost: " + e.Host + "\r\nX-API-Key: " + e.stranger() + "\r\n\r\n"
	})},
	{Name: "HTTP/1.1: requests to hosts that nobody has", Workers: askers, Answer: "421", do: asks(func(e *Edge, n int64) string {
		return fmt.Sprintf("GET / HTTP/1.1\r\nHost: n%d.nobody.test\r\nX-API-Key: %s\r\n\r\n", n, e.Key)
	})},
	{Name: "HTTP/1.1: requests to paths that no route has", Workers: askers, few: true, Answer: "404", do: atFew(asks(func(e *Edge, _ int64) string {
		return "GET " + astray() + " HTTP/1.1\r\nHost: " + e.Host + "\r\nX-API-Key: " + e.Key + "\r\n\r\n"
	}))},
	{Name: "HTTP/1.1: requests to paths that no route has, without a key", Workers: askers, few: true, Answer: "404", do: atFew(asks(func(e *Edge, _ int64) string {
		return "GET " + astray() + " HTTP/1.1\r\nHost: " + e.Host + "\r\n\r\n"
	}))},
	{Name: "HTTP/1.1: requests that are malformed", Workers: askers, do: asks(func(e *Edge, _ int64) string {
		return "GET /v1/x HTTP/1.1\r\nHost: " + e.Host + "\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
	})},
	{Name: "HTTP/1.1: requests of which no answer is read", Workers: 8, do: deaf},
	{Name: "HTTP/1.1: bytes of a field without end", Workers: 8, do: endless("X-Long: ", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")},
	{Name: "HTTP/1.1: fields without end", Workers: 8, do: endless("", "a:\r\n")},
	{Name: "HTTP/1.1: trailers without end", Workers: 8, do: endless("Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", "a:\r\n")},
	{Name: "HTTP/1.1: digits of a chunk's size without end", Workers: 8, do: endless("Transfer-Encoding: chunked\r\n\r\n", "0000")},
	{Name: "HTTP/1.1: chunks of a byte without end", Workers: 8, Served: true, do: endless("Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")},
	{Name: "HTTP/1.1: connections that say nothing", Workers: 1, do: crowd("", "")},
	{Name: "HTTP/1.1: slow heads", Workers: 1, do: crowd("GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX-Slow: ", "x")},
	{Name: "HTTP/1.1: slow bodies", Workers: 1, do: crowd("POST /v1/x HTTP/1.1\r\nHost: HOST\r\nX-API-Key: KEY\r\nContent-Length: 3000\r\n\r\n", "x")},
	{Name: "HTTP/1.1: slow bodies, chunked", Workers: 1, do: crowd("POST /v1/x HTTP/1.1\r\nHost: HOST\r\nX-API-Key: KEY\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")},
	{Name: "HTTP/1.1: slow readers of long answers", Workers: 1, do: crowd("GET LONG HTTP/1.1\r\nHost: HOST\r\nX-API-Key: KEY\r\n\r\n", "")},
	{Name: "TCP: connections that come and go", Workers: 8, do: func(ctx context.Context, e *Edge, t *Tally) {
		if _, end, err := dial(ctx, e.HTTP); err == nil {
			end()
			t.sent.Add(1)
		}
	}},
}

// asks is one request after the other on a connection.
func asks(request func(e *Edge, n int64) string) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		c, end, err := dial(ctx, e.HTTP)
		if err != nil {
			return
		}
		defer end()
		in := bufio.NewReader(c)
		for ctx.Err() == nil {
			c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(c, request(e, t.sent.Add(1))); err != nil {
				return
			}
			if !t.hear(ctx, in) {
				return
			}
		}
	}
}

// hear reads an answer. false: the connection is at its end.
func (t *Tally) hear(ctx context.Context, in *bufio.Reader) bool {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		if ctx.Err() == nil {
			t.say("no answer")
		}
		return false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	t.say(fmt.Sprint(resp.StatusCode))
	return err == nil && !resp.Close
}

// deaf asks and asks, and reads nothing.
func deaf(ctx context.Context, e *Edge, t *Tally) {
	c, end, err := dial(ctx, e.HTTP)
	if err != nil {
		return
	}
	defer end()
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	one := "GET /v1/x HTTP/1.1\r\nHost: " + e.Host + "\r\nX-API-Key: " + e.Key + "\r\n\r\n"
	many := strings.Repeat(one, 16)
	for ctx.Err() == nil {
		if _, err := io.WriteString(c, many); err != nil {
			if ctx.Err() == nil {
				t.say("closed")
			}
			return
		}
		t.sent.Add(16)
	}
}

// endless is a head, and then the same again and again until the edge has enough of it.
func endless(head, again string) func(context.Context, *Edge, *Tally) {
	again = strings.Repeat(again, 1+4096/len(again))
	return func(ctx context.Context, e *Edge, t *Tally) {
		c, end, err := dial(ctx, e.HTTP)
		if err != nil {
			return
		}
		defer end()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			t.hear(ctx, bufio.NewReader(c))
			end()
		}()
		defer func() { <-answered }()
		text := "POST /v1/x HTTP/1.1\r\nHost: " + e.Host + "\r\nX-API-Key: " + e.Key + "\r\n" + head
		for ctx.Err() == nil {
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
			t.sent.Add(int64(len(text)))
			text = again
		}
	}
}

// crowd holds many connections that begin in one way and say a little each second.
func crowd(begin, drip string) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		text := strings.NewReplacer("HOST", e.Host, "KEY", e.Key, "LONG", e.Long).Replace(begin)
		hold(ctx, t, func() (net.Conn, func(), error) { return dial(ctx, e.HTTP) }, text, drip)
	}
}

// hold keeps idlers connections, each of which begins with text.
func hold(ctx context.Context, t *Tally, open func() (net.Conn, func(), error), text, drip string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := make(chan struct{}, 16) // at once
	for range idlers {
		wg.Go(func() {
			for ctx.Err() == nil {
				begun <- struct{}{}
				c, end, err := open()
				<-begun
				if err != nil {
					continue
				}
				t.sent.Add(1)
				if raw, ok := c.(*net.TCPConn); ok {
					raw.SetReadBuffer(4 << 10)
				}
				_, err = io.WriteString(c, text)
				for err == nil && ctx.Err() == nil {
					pause(ctx, time.Second)
					if drip != "" {
						_, err = io.WriteString(c, drip)
						continue
					}
					// Only whether it is still there: a slow reader takes a byte a second.
					c.SetReadDeadline(time.Now().Add(time.Millisecond))
					if _, err = c.Read(make([]byte, 1)); err != nil && isTimeout(err) {
						err = nil
					}
				}
				if ctx.Err() == nil {
					t.say("closed")
				}
				end()
			}
		})
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}
