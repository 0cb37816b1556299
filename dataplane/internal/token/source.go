package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/shared/table"
)

const (
	maxPublished = 1 << 20 // bytes of what an issuer publishes
	maxKeys      = 64      // of them
	fetchLimit   = 10 * time.Second
	firstRetry   = time.Second
	lastRetry    = time.Minute
)

// sourceID says where keys come from; issuers of several APIs that come from one place share a source.
type sourceID struct{ issuer, url, text string }

func idOf(i *table.Issuer) sourceID { return sourceID{i.Issuer, i.JWKSURL, i.JWKS} }

// keySet never changes.
type keySet struct{ keys []jose.JSONWebKey }

// source is where an issuer's keys come from.
type source struct {
	id   sourceID
	set  atomic.Pointer[keySet] // nil: none, or they are too old
	wake chan struct{}          // of one place: a token may mean a key that is not known
}

// want asks for a fetch, if none is asked for.
func (s *source) want() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// source finds an issuer's keys, nil if they are not followed yet.
func (v *Verifier) source(i *table.Issuer) *source {
	id := idOf(i)
	v.mu.RLock()
	s := v.sources[id]
	v.mu.RUnlock()
	return s
}

// Run follows the issuers that the table names until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	stop := map[sourceID]context.CancelFunc{}
	defer func() {
		for _, cancel := range stop {
			cancel()
		}
		wg.Wait()
	}()
	for {
		changed := v.cfg.Tables.Changed()
		wanted := map[sourceID]bool{}
		for _, o := range v.cfg.Tables.Load().APIs() {
			if o.Auth == nil {
				continue
			}
			for i := range o.Auth.Issuers {
				wanted[idOf(&o.Auth.Issuers[i])] = true
			}
		}
		v.mu.Lock()
		for id := range wanted {
			if v.sources[id] != nil {
				continue
			}
			s := &source{id: id, wake: make(chan struct{}, 1)}
			v.sources[id] = s
			if id.text != "" {
				set, err := read([]byte(id.text))
				if err != nil { // apply has looked at it
					v.cfg.Logger.Warn("an issuer's keys do not read", "error", err)
				}
				s.set.Store(set)
				continue
			}
			run, cancel := context.WithCancel(ctx)
			stop[id] = cancel
			wg.Go(func() { v.follow(run, s) })
		}
		for id, s := range v.sources {
			if !wanted[id] {
				if cancel := stop[id]; cancel != nil {
					cancel()
					delete(stop, id)
				}
				s.set.Store(nil) // what was verified by it counts no more
				delete(v.sources, id)
			}
		}
		v.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// follow fetches a source's keys now and again, sooner if it fails, and once when a token names one that is not known, or none, and no known one signed it.
func (v *Verifier) follow(ctx context.Context, s *source) {
	var answered time.Time
	retry := firstRetry
	for ctx.Err() == nil {
		set, err := v.fetch(ctx, s.id)
		wait := v.cfg.Refresh*4/5 + rand.N(v.cfg.Refresh*2/5)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if !same(set, s.set.Load()) {
				s.set.Store(set)
			}
			answered, retry = time.Now(), firstRetry
		default:
			v.cfg.Logger.Warn("an issuer's keys were not fetched", "error", err)
			wait, retry = retry/2+rand.N(retry), min(2*retry, lastRetry)
			if !answered.IsZero() && time.Since(answered) > v.cfg.Stale {
				s.set.Store(nil)
			}
		}
		patience := time.NewTimer(v.cfg.Patience)
		over := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-over.C:
		case <-patience.C:
			select {
			case <-ctx.Done():
			case <-over.C:
			case <-s.wake:
			}
		}
		patience.Stop()
		over.Stop()
	}
}

// same says whether two sets have the same keys, so that what was verified stays so.
func same(a, b *keySet) bool {
	if a == nil || b == nil {
		return false
	}
	x, errA := json.Marshal(a.keys)
	y, errB := json.Marshal(b.keys)
	return errA == nil && errB == nil && string(x) == string(y)
}

func (v *Verifier) fetch(ctx context.Context, id sourceID) (*keySet, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	address := id.url
	if address == "" {
		data, err := v.get(ctx, strings.TrimSuffix(id.issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, err
		}
		var doc struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			return nil, fmt.Errorf("read the discovery document of %s: %w", id.issuer, err)
		}
		if doc.Issuer != id.issuer {
			return nil, fmt.Errorf("read the discovery document of %s: it is of another issuer", id.issuer)
		}
		to, err := url.Parse(doc.Keys)
		from, errFrom := url.Parse(id.issuer)
		if err != nil || errFrom != nil || to.Host == "" || to.User != nil || to.Scheme != "https" && to.Scheme != from.Scheme {
			return nil, fmt.Errorf("read the discovery document of %s: where its keys are is no https URL", id.issuer)
		}
		address = doc.Keys
	}
	data, err := v.get(ctx, address)
	if err != nil {
		return nil, err
	}
	set, err := read(data)
	if err != nil {
		return nil, fmt.Errorf("read the keys of %s: %w", id.issuer, err)
	}
	return set, nil
}

func (v *Verifier) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "bailiwick-edge")
	resp, err := v.cfg.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: status %d", address, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxPublished+1))
	if err == nil && len(data) > maxPublished {
		err = fmt.Errorf("get %s: more than %d bytes", address, maxPublished)
	}
	return data, err
}

// read takes the public keys for signatures out of a key set. One of a kind that is not known here is no reason to lose the
// others; a set of none is, so that an issuer's mishap does not refuse everybody.
func read(data []byte) (*keySet, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	set := &keySet{}
	for _, raw := range doc.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) == nil && key.Valid() && key.IsPublic() && (key.Use == "" || key.Use == "sig") && len(set.keys) < maxKeys {
			set.keys = append(set.keys, key)
		}
	}
	if len(set.keys) == 0 {
		return nil, errors.New("there is no public key for signatures among them")
	}
	return set, nil
}
