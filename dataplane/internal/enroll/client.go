package enroll

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
)

// attempt bounds one call to one control node, so that a silent one costs
// little before the next is asked.
const attempt = 5 * time.Second

// Client calls the control nodes of the edge's own zone: whichever answers. It
// implements joinv1connect's IdentityServiceClient and CertStoreServiceClient;
// all their calls may be repeated without harm. Errors are faults.
type Client struct {
	nodes []*node
	last  atomic.Int32 // the node that answered last: asked first
}

type node struct {
	peer  Peer
	http  *http.Client
	id    joinv1connect.IdentityServiceClient
	certs joinv1connect.CertStoreServiceClient
}

// NewClient makes a Client of the state's control nodes.
func (s *State) NewClient(opts ...connect.ClientOption) *Client {
	c := &Client{}
	for _, p := range s.Peers {
		hc := HTTPClient(s.Source, p)
		c.nodes = append(c.nodes, &node{
			p, hc, joinv1connect.NewIdentityServiceClient(hc, p.URL(), opts...), joinv1connect.NewCertStoreServiceClient(hc, p.URL(), opts...),
		})
	}
	c.last.Store(rand.Int32N(int32(max(len(c.nodes), 1)))) // edges spread over the nodes
	return c
}

// URL is the base URL of a control node's peer port.
func (p Peer) URL() string { return "https://" + p.Addr }

// HTTPClient reaches one control node of the edge's zone over HTTP/2 and mutual
// TLS; whoever else answers at its address is refused. Without a total timeout:
// it carries streams too.
func HTTPClient(src *identity.Source, p Peer) *http.Client {
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	return &http.Client{
		Transport: &http.Transport{
			Protocols:           protos,
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:     src.ClientTLS([]string{"h2"}, identity.Only(identity.Control, src.Name().Zone, p.Name)),
			TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 90 * time.Second,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 20 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close drops idle connections.
func (c *Client) Close() {
	for _, n := range c.nodes {
		n.http.CloseIdleConnections()
	}
}

// Renewer renews src through c.
func (c *Client) Renewer(src *identity.Source, log *slog.Logger) *identity.Renewer {
	return &identity.Renewer{Source: src, Logger: log, Issue: func(ctx context.Context, csr []byte) (chain, roots []byte, err error) {
		resp, err := c.Renew(ctx, &joinv1.RenewRequest{Csr: csr})
		return resp.GetCertificateChain(), resp.GetRoots(), err
	}}
}

// ask tries the nodes in turn while the answer is that another may do.
func ask[Req, Resp any](ctx context.Context, c *Client, req *Req, call func(*node) func(context.Context, *Req) (*Resp, error)) (*Resp, error) {
	var last error = fault.New(fault.Unavailable, "NO_CONTROL_NODE", "no control node is known")
	first := int(c.last.Load())
	for i := range c.nodes {
		at := (first + i) % len(c.nodes)
		limit := attempt
		if d, ok := ctx.Deadline(); ok && i < len(c.nodes)-1 {
			limit = min(limit, time.Until(d)/2) // leave time for another node
		}
		once, cancel := context.WithTimeout(ctx, limit)
		resp, err := call(c.nodes[at])(once, req)
		cancel()
		if err == nil {
			c.last.Store(int32(at))
			return resp, nil
		}
		last = rpcfault.From(err)
		if fault.KindOf(last) == fault.Unavailable {
			c.last.CompareAndSwap(int32(at), int32((at+1)%len(c.nodes))) // so a silent node is not asked first again
		}
		if k := fault.KindOf(last); ctx.Err() != nil || k != fault.Unavailable && k != fault.Internal && !behind(last) {
			return nil, last
		}
	}
	return nil, last
}

// behind tells of refusals by a node that may not have heard of us yet.
func behind(err error) bool {
	return fault.ReasonOf(err) == "NODE_WITHDRAWN" || fault.ReasonOf(err) == "HOST_NOT_IN_ZONE"
}

func (c *Client) Renew(ctx context.Context, r *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
		return n.id.Renew
	})
}

func (c *Client) IssueHost(ctx context.Context, r *joinv1.IssueHostRequest) (*joinv1.IssueHostResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.IssueHostRequest) (*joinv1.IssueHostResponse, error) {
		return n.id.IssueHost
	})
}

func (c *Client) Store(ctx context.Context, r *joinv1.StoreRequest) (*joinv1.StoreResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.StoreRequest) (*joinv1.StoreResponse, error) {
		return n.certs.Store
	})
}

func (c *Client) Load(ctx context.Context, r *joinv1.LoadRequest) (*joinv1.LoadResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.LoadRequest) (*joinv1.LoadResponse, error) {
		return n.certs.Load
	})
}

func (c *Client) Delete(ctx context.Context, r *joinv1.DeleteRequest) (*joinv1.DeleteResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.DeleteRequest) (*joinv1.DeleteResponse, error) {
		return n.certs.Delete
	})
}

func (c *Client) List(ctx context.Context, r *joinv1.ListRequest) (*joinv1.ListResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.ListRequest) (*joinv1.ListResponse, error) {
		return n.certs.List
	})
}

func (c *Client) Stat(ctx context.Context, r *joinv1.StatRequest) (*joinv1.StatResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.StatRequest) (*joinv1.StatResponse, error) {
		return n.certs.Stat
	})
}

func (c *Client) Lock(ctx context.Context, r *joinv1.LockRequest) (*joinv1.LockResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.LockRequest) (*joinv1.LockResponse, error) {
		return n.certs.Lock
	})
}

func (c *Client) Unlock(ctx context.Context, r *joinv1.UnlockRequest) (*joinv1.UnlockResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.UnlockRequest) (*joinv1.UnlockResponse, error) {
		return n.certs.Unlock
	})
}

func (c *Client) Order(ctx context.Context, r *joinv1.OrderRequest) (*joinv1.OrderResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.OrderRequest) (*joinv1.OrderResponse, error) {
		return n.certs.Order
	})
}

func (c *Client) Ordered(ctx context.Context, r *joinv1.OrderedRequest) (*joinv1.OrderedResponse, error) {
	return ask(ctx, c, r, func(n *node) func(context.Context, *joinv1.OrderedRequest) (*joinv1.OrderedResponse, error) {
		return n.certs.Ordered
	})
}

var (
	_ joinv1connect.IdentityServiceClient  = (*Client)(nil)
	_ joinv1connect.CertStoreServiceClient = (*Client)(nil)
)
