//! A connection that joins a session over TCP (RFC 7143 6.3.4).

use super::Tcp;
use crate::{
    conn::Conn,
    datamover::Datamover,
    login::{Granted, Refusal},
    pdu::BHS_LEN,
    session::{Joining, Session},
};
use vscsi_target::reactor::Cx;

impl Session<Tcp> {
    /// A connection joins, or takes the place of one with the same CID.
    pub(super) fn join(&mut self, joining: Joining, cx: &mut Cx<'_>) {
        let Joining { link, ready, peer, local } = joining;
        self.drop_connection(ready.connection().cid, cx);
        let mut mover = Tcp::new(link.fd);
        mover.rest = link.rest;
        mover.output.put(&link.unsent);
        if let Some(most) = self.is_full() {
            let refused = ready.refuse(Refusal::TooManyConnections(most));
            self.shared().log_refused(&refused, &peer);
            if let Some(reply) = &refused.reply {
                let mut header = [0; BHS_LEN];
                reply.pdu.emit(&mut header);
                mover.put(&header, &reply.text);
            }
            // What does not go at once is lost with the connection.
            let _ = mover.flush(false, cx);
            return;
        }
        let numbers = self.numbers(0);
        let (reply, logged_in) = ready.finish(Granted {
            tsih: self.facts().tsih,
            exp_cmd_sn: numbers.exp_cmd_sn,
            max_cmd_sn: numbers.max_cmd_sn,
        });
        let mut header = [0; BHS_LEN];
        reply.pdu.emit(&mut header);
        mover.put(&header, &reply.text);
        mover.negotiated(&logged_in.parameters);
        self.adopt(Conn::new(mover, &logged_in, peer.to_string(), local, cx.now), cx);
    }
}
