package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// play serves control_url and sends sample traffic until ctx ends.
func (s *sandbox) play(ctx context.Context) error {
	l, err := net.Listen("tcp", s.layout.control())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for verb, act := range map[string]func(context.Context, *child) error{
		"kill":   func(ctx context.Context, c *child) error { return c.signal(ctx, syscall.SIGKILL, true, 10*time.Second) },
		"stop":   func(ctx context.Context, c *child) error { return c.signal(ctx, syscall.SIGTERM, true, 20*time.Second) },
		"pause":  func(ctx context.Context, c *child) error { return c.signal(ctx, syscall.SIGSTOP, false, 0) },
		"resume": func(ctx context.Context, c *child) error { return c.signal(ctx, syscall.SIGCONT, false, 0) },
		"start":  func(_ context.Context, c *child) error { return c.start(s.log) },
		"replace": func(ctx context.Context, c *child) error { // edges alone can be
			if !strings.Contains(c.name, "-edge-") {
				return fmt.Errorf("%s has no sockets to hand over; stop and start it", c.name)
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := c.replace(s.log); err != nil {
				return err
			}
			return s.waitReadyAs(ctx, s.adminOf(c.name)+"/readyz", c.name, fmt.Sprintf("process %d\n", c.pid()))
		},
	} {
		mux.HandleFunc("POST /v1/"+verb+"/{name}", func(w http.ResponseWriter, r *http.Request) { s.act(w, r, act) })
	}
	mux.HandleFunc("GET /v1/leaders", s.leaders)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	var wg sync.WaitGroup
	if !s.cfg.NoTraffic {
		for i, e := range edgeSpecs {
			wg.Go(func() { s.traffic(ctx, i, e) })
		}
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.Serve(l)
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// targets of a name: one child, or every child of "region:NAME".
func (s *sandbox) targets(name string) []*child {
	region, whole := strings.CutPrefix(name, "region:")
	var found []*child
	for _, n := range s.order {
		if c := s.children[n]; (whole && c.region == region) || n == name {
			found = append(found, c)
		}
	}
	return found
}

func (s *sandbox) act(w http.ResponseWriter, r *http.Request, act func(context.Context, *child) error) {
	targets := s.targets(r.PathValue("name"))
	if len(targets) == 0 {
		writeJSON(w, http.StatusNotFound, map[string]any{"error": fmt.Sprintf("no process or region %q; names are those of sandbox.json", r.PathValue("name"))})
		return
	}
	type outcome struct {
		Name  string `json:"name"`
		PID   int    `json:"pid"`
		Error string `json:"error,omitempty"`
	}
	outcomes := make([]outcome, len(targets))
	status := http.StatusOK
	var wg sync.WaitGroup
	for i, c := range targets {
		wg.Go(func() { // a region goes at once, not one process after another
			outcomes[i] = outcome{Name: c.name}
			if err := act(r.Context(), c); err != nil {
				outcomes[i].Error = err.Error()
			}
			outcomes[i].PID = c.pid()
		})
	}
	wg.Wait()
	for _, o := range outcomes {
		if o.Error != "" {
			status = http.StatusConflict
		}
	}
	writeJSON(w, status, map[string]any{"processes": outcomes})
}

// leaders asks each zone who leads which group.
func (s *sandbox) leaders(w http.ResponseWriter, r *http.Request) {
	all := map[string]string{}
	for _, z := range zones {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		out, err := s.command(ctx, []string{"BAILIWICK_ADMIN=" + s.layout.adminURLs(z.name), "BAILIWICK_CA_FILE=" + s.path("ca.pem"), "BAILIWICK_TOKEN_FILE=" + s.path("admin.token")},
			s.bin("bailiwick"), "leaders", "-o", "json")
		cancel()
		if err != nil {
			continue // the zone is down: its groups are left out
		}
		var part map[string]string
		if json.Unmarshal(out, &part) == nil {
			for group, leader := range part {
				if leader != "" {
					all[group] = leader
				}
			}
		}
	}
	writeJSON(w, http.StatusOK, all)
}

// traffic is two requests a second through one edge: enough to see usage arrive.
func (s *sandbox) traffic(ctx context.Context, i int, e edgeSpec) {
	client := edgeClient(s.roots, s.layout.edgeHTTPS(i))
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var mine []keyInfo
	for _, k := range s.keys {
		if k.Zone == e.zone {
			mine = append(mine, k)
		}
	}
	for n := 0; len(mine) > 0; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Errors are the point of a sandbox in which things are killed; the edge's own metrics tell of them.
		_, _ = ask(ctx, client, "orders."+e.zone+".example.test", mine[n%len(mine)].Key)
	}
}

// adminOf is where an edge says whether it is ready.
func (s *sandbox) adminOf(name string) string {
	i := slices.IndexFunc(edgeSpecs, func(e edgeSpec) bool { return e.name == name })
	return "http://" + s.layout.edgeAdmin(max(i, 0))
}
