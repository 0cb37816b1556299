package telemetry

import "strings"

// names are the attributes that our lines may carry. A log leaves the machine and often the zone: names of nodes, regions,
// APIs and policies, numbers and reasons are what it is for. What a request brought is not: no path, query, header, body,
// address of a client or text of a key. Customers go by no name. A new name is added here after that question; archtest
// reads our own lines, NewLogger masks what a library calls otherwise.
var names = func() map[string]bool {
	all := map[string]bool{"time": true, "level": true, "msg": true, "source": true}
	for _, n := range append(Names(), append(strings.Fields(libraryNames), "backoff time")...) {
		all[n] = true
	}
	return all
}()

// Names lists those of our own lines.
func Names() []string {
	return strings.Fields(`
addr admin admin_urls after after_ms api blocks budget budget_bytes by bytes bytes_before catalog cells count day
detail duration edge epoch erased_rows err error expired_rows fails file files flights from grant group hash hashed
heard held host hosts https id index key keys kind kind_of leader limit lock log majority minutes name next_order
node nodes not_after number offset operation part peer plan policy position problem processor_time program reason record records
records_behind_it refused_total region remote request retry_in revision rollout rows rows_lost rule segment seq serial
served sessions signed sink source stored sum target term to  transport type url valid_for waited_for
want_snapshot webhook why why_here written zone
`)
}

// libraryNames are those of what raft, certmagic and http3 say: nodes, terms and positions; hosts, certificates and orders;
// places in the code. Paths, headers, contacts and addresses of clients are not among them.
const libraryNames = `
logger trace
bytes candidate command computed current-term error expected-leader fallback follower index last-candidate-index last-candidate-term
last-index last-leader-addr last-leader-id last-term leader-address leader-id log_store next ours percent-complete previous-index raft-state
read-bytes received remote request-term server-addr server-id servers size tally term time version votesNeeded
account ari_cert_id attempt authz authz_status ca cache_size cert_hash cert_id challenge challenge_type cert_expiry chain detail domain elapsed
ephemeral_selected_time expiration expired expires fqdn hash identifier identifier_type identifiers instance issuer issuer_key load_or_obtain_if_necessary
location lock_key managed max_attempts max_duration method new_expiration next_update not_after num_choices ocsp_status on_demand order original
problem recheck_after record_type remaining renewal_cutoff renew_check_interval retrying_in revoked_at sans selected_time start status
status_code storage_path subject subjects subproblem subproblems title try_again try_again_in type url window_end window_start
`
