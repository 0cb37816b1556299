package edgetls

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
)

// onEvent is certmagic's turn to ask before an order and to tell after it. Both
// come under the lock of the host's issue; an error at the first ends the order
// before the authority hears of it.
func (m *Manager) onEvent(ctx context.Context, event string, data map[string]any) error {
	host, _ := data["identifier"].(string)
	switch event {
	case "cert_obtaining":
		renewal, _ := data["renewal"].(bool)
		kind := "first"
		if renewal {
			kind = "renewal"
		}
		m.log.Info("certificate order begins", "host", host, "kind", kind)
		wait, err := m.shelf.order(ctx, host, m.tries(), renewal)
		if err != nil {
			return fmt.Errorf("ask the zone for leave to order: %w", err)
		}
		if wait > 0 {
			m.holdOff(host, wait)
			return fmt.Errorf("the zone has used up what the authority grants for %s; the next order is in %v", host, wait.Round(time.Second))
		}
	case "cert_obtained", "cert_failed":
		outcome := joinv1.OrderOutcome_ORDER_OUTCOME_ISSUED
		if event == "cert_failed" {
			err, _ := data["error"].(error)
			outcome = outcomeOf(err)
		}
		wait, err := m.shelf.ordered(ctx, host, outcome)
		if err != nil { // it stays counted as one that failed
			m.log.Warn("the end of a certificate order was not told", "host", host, "error", err)
		}
		m.holdOff(host, wait)
	}
	return nil
}

// outcomeOf tells an authority that refused from one that was never reached.
func outcomeOf(err error) joinv1.OrderOutcome {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return joinv1.OrderOutcome_ORDER_OUTCOME_NOT_MADE
	}
	return joinv1.OrderOutcome_ORDER_OUTCOME_FAILED
}

// tries is how many validations one attempt may cost: one for each challenge, in
// orders of their own.
func (m *Manager) tries() (n int) {
	if !m.acme.DisableHTTPChallenge {
		n++
	}
	if !m.acme.DisableTLSALPNChallenge {
		n++
	}
	return n
}

// holdOff notes that the zone makes no order of host for a while; the edges come
// back one after another.
func (m *Manager) holdOff(host string, wait time.Duration) {
	m.waitMu.Lock()
	defer m.waitMu.Unlock()
	if wait <= 0 {
		delete(m.waits, host)
		return
	}
	m.waits[host] = time.Now().Add(wait + rand.N(wait/10+1))
}

func (m *Manager) noOrderBefore(host string) time.Time {
	m.waitMu.Lock()
	defer m.waitMu.Unlock()
	return m.waits[host]
}
